"""`python -m fg_ssl_zoo.pretrain`."""

from fg_ssl_zoo.pretrain import main

if __name__ == "__main__":
    main()
