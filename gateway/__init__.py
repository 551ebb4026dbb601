"""The web side of the code reviewer: what outgrows `main.py`."""
