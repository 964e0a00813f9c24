"""Features of pictures: networks that extract them, the files that keep them, and actors that run it all."""
