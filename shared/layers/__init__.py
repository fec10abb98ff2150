"""Small layers that several networks share, one a file."""
