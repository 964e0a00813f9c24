"""`tandem study NAME`: each table and figure of the paper for the models at hand, one module a study."""
