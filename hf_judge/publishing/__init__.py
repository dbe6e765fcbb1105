"""Show a judge head to others: figures for its card, the page before a push, and the heads that are on the Hub."""
