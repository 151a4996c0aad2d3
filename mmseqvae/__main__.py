"""`python -m mmseqvae` is the command `mmseqvae`."""

from mmseqvae.cli.commands import main

main()
