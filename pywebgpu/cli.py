"""Command line of pywebgpu."""


def main() -> None:
    raise SystemExit("not here yet")
