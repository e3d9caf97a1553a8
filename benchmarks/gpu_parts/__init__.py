"""What gpu.py is made of: the card and its peak, the machine, the jobs, and the page of what came out."""
