"""`tandem tune`: the cheapest settings whose quality is not worse, found by measurement."""
