"""Complete programs that use Beam Agents; each is a package that runs with `python -m examples.NAME`."""
