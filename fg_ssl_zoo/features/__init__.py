"""Features of images: computed, cached, written to files, searched.

extract          features of a data set, in its order
cache            the same, read from a file if they were computed before
embedder         features of single images, in memory
embed_dataset    features of whole data sets, written to a file part by part
embedding_parts  the parts of that file: which are kept, which are computed again
embedding_file   the format of this file: .parquet, .npz or .safetensors
search           the nearest images in such a file
"""
