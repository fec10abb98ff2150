"""Recipes of the 15 tasks that LVM-Med was judged by (dossier's table; appendix of the paper)."""
