"""`tandem edit`: parts of pictures drawn anew, as a dataset."""
