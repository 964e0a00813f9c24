"""Editing of pictures: masks, the model's square within a picture of any size, and the way back into it."""
