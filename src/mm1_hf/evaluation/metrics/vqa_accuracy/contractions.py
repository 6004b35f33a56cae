"""
The contractions that the VQA normaliser completes: `dont` becomes `don't`.

The list is that of the official evaluation. It is written here by the corrected forms, because all but a few incorrect
forms are the correct one with one apostrophe missing. Entries with capital letters are left out: the normaliser looks
up lower-case words, so they never match.
"""

# The incorrect form lacks all apostrophes.
_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're
they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""

# The incorrect form lacks one of several apostrophes, whichever it is.
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've 'ow's'at
"""


def _without(word: str, position: int) -> str:
    return word[:position] + word[position + 1 :]


CONTRACTIONS: dict[str, str] = {word.replace("'", ""): word for word in _PLAIN.split()}
CONTRACTIONS |= {
    _without(word, position): word
    for word in _DOUBLE.split()
    for position, character in enumerate(word)
    if character == "'"
}
# The official list has this pair in the wrong direction, so that a correct form is changed.
CONTRACTIONS["somebody'd"] = "somebodyd"
