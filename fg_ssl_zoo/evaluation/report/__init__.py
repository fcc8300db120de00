"""The HTML page of `fgssl report`: scores of backbones, and details of the first one.

    html = write_report(["runs/x", "resnet50.a1_in1k"], data, accelerator)       # page.py

    page             the content of the page, and the page
    inspected_model  the first model and its images, the subject of all details
    scores           the table of results
    curves           accuracy over labels, and the logs of runs
    sections         the images of the page as plain data
    confusion        confused class pairs, accuracy of each class
    attribution      attribution maps; patch features as colours
    tsne             features as points of a plane
    templates        fills the templates of the pages
    pictures         thumbnails inside the page
    bokeh_figures    the map and the curves
    parts_page       the page of `fgssl parts`: discovered parts

The page makes no requests: scripts, styles and images are inside it.
"""
