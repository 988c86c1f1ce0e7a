"""The dialects that input files come in; each becomes lines as the card has them."""
