"""`python -m pywebgpu` is the same as the `pywebgpu` command."""

from pywebgpu.cli import main

if __name__ == "__main__":
    main()
