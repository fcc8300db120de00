"""`python -m fg_ssl_zoo.cli`, for `accelerate launch -m fg_ssl_zoo.cli eval ...`."""

from fg_ssl_zoo.cli import main

main()
