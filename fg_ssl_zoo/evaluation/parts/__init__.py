"""Parts of objects: true masks, scores of found parts, a network that learns masks.

truth               part names and masks of a data set in one form
points              keypoints of a data set, in the picture and in its centre crop
scores              found parts against masks and keypoints
segmenter           the network of `part_segmentation` and its options
segmenter_training  how it learns from a list of labelled pictures
segmenter_scores    its pixels counted against the masks
"""
