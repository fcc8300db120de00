"""Pretrain a backbone: `accelerate launch train.py [RECIPE or FOLDER] [key.path=value ...]`."""

from fg_ssl_zoo.pretrain import main

if __name__ == "__main__":
    main()
