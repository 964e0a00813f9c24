"""Reads labelled pictures of any kind: datasets of Tandem, image folders, webdatasets, parquet, `.npz` files."""
