"""How things look to people: pieces of text with styles, fitted to a terminal's width; plain text where there is none.

No colour is one that vanishes on a dark or a light background, and nothing is said by colour alone.
"""
