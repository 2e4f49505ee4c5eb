"""What other systems do when their process dies at a call boundary: each in an environment of its own."""
