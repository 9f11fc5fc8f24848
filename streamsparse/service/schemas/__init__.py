"""The API's contract: every body that goes in or comes out."""
