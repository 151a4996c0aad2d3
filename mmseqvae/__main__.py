"""`python -m mmseqvae` is the command `mmseqvae`."""

from mmseqvae.cli import main

main()
