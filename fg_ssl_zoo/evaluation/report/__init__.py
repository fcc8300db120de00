"""One HTML page that shows why a backbone is good or bad at telling fine-grained classes apart.

    html = write_report(["runs/x", "resnet50.a1_in1k"], data, accelerator)       # page.py

    page             the content of the page, and the page
    inspected_model  the first model and the pictures that all details are about
    scores           the table of results
    curves           accuracy over labels, and what runs logged while training
    sections         the pictures of the page as plain data
    confusion        class pairs that are taken for each other, accuracy of each class
    attribution      where the evidence for a class lies; patch features as colours
    tsne             features as points of a plane
    templates        fills the templates of the pages
    pictures         thumbnails inside the page
    bokeh_figures    the map and the curves
    parts_page       the page of `fgssl parts`: pictures of discovered parts

The page asks the network for nothing: scripts, styles and pictures are inside it.
"""
