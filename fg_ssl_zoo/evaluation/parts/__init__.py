"""Parts of objects: annotated masks, scores of discovered parts, part segmentation.

truth               annotated part names and masks of a data set
points              keypoints of a data set, in the image and in its centre crop
scores              discovered parts compared with masks and keypoints
segmenter           the network of `part_segmentation` and its options
segmenter_training  trains it on a list of labelled images
segmenter_scores    compares its predictions with the masks
"""
