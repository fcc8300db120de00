"""Features: what a backbone says of pictures, computed once and kept, written to files, searched.

extract         features of a set of pictures, in the order of the set
cache           the same, read from a file if the same was asked before
embedder        one model and its features of pictures in memory
embed_dataset   features of whole data sets in a file, part by part
embedding_file  that file: .parquet, .npz or .safetensors
search          the nearest pictures of such a file
"""
