"""One HTML page that shows why a backbone is good or bad at telling fine-grained classes apart.

    html = write_report(["runs/x", "resnet50.a1_in1k"], data, accelerator)       # page.py

    page         what goes onto the page, and the page
    subject      the model and the pictures that all details are about
    scores       the table of results, curves over labels and over training
    details      the pictures of the page as plain data
    confusion    class pairs that are taken for each other, accuracy of each class
    neighbours   the nearest pictures of some queries
    looks        where the evidence for a class lies; patch features as colours
    embedding    features as points of a plane
    pictures     thumbnails inside the page
    figures      Bokeh: the map and the curves

The page asks the network for nothing: scripts, styles and pictures are inside it.
"""
