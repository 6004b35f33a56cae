"""
What models write that is no caption, as regular expressions. The reasons are in the order in which they are looked
for: a refusal in Chinese is a refusal before it is another script.
"""

import re


def _any_of(*forms: str) -> re.Pattern[str]:
    return re.compile("|".join(forms), re.IGNORECASE)


CONTROL_TOKEN = _any_of(
    r"<\|?/?(?:image|img|s|bos|eos|pad|unk|im_start|im_end|endoftext|eot_id|system|user|assistant|think)\|?>",
    r"<\|[a-z_]{1,40}\|>",
    r"<(?:start|end)_of_\w{1,20}>",
    r"\[/?INST\]",
    r"<</?SYS>>",
)

_SEES_NOTHING = "see|view|access|display|describe|identify|determine|process"
_DOES_NOTHING = "assist|help|provide|fulfil|generate|comply|create|answer|write|combine"
_REFUSAL = _any_of(
    r"\bI(?:['’]m| am) (?:really |very |so )?(?:sorry|unable|afraid|not able)\b",
    r"\bI apologi[sz]e\b",
    r"\bmy apologies\b",
    rf"\bI can(?:not|['’]t| not) (?:\w+ )?(?:{_SEES_NOTHING}|{_DOES_NOTHING})",
    rf"\bI could(?:n['’]t| not) (?:\w+ )?(?:{_SEES_NOTHING})",
    r"\bI (?:do not|don['’]t) have (?:the |any )?(?:ability|access|capabilit|enough|visual)",
    r"\bI (?:do not|don['’]t) see (?:an|any) image",
    r"\bas an? (?:AI|artificial intelligence|(?:large )?language model|text-based|virtual assistant)\b(?!-)",
    rf"\b(?:unable|not able) to (?:{_SEES_NOTHING}|assist)\b",
    r"\bno images? (?:was|were|is|has been|have been) (?:provided|attached|given|included|uploaded)\b",
)

# Refusals and phrases around an answer in other languages than English.
_OTHER_LANGUAGES = _any_of(
    r"对不起|抱歉|很遗憾|我无法|我不能|无法(?:查看|识别|提供)|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|以下是|这张图|希望(?:这|对)",
    r"申し訳|すみません|できません|以下(?:は|の)",
    r"죄송|할 수 없|다음은",
    r"извините|к сожалению|я не могу|как (?:языковая|искусственный)",
    r"\b(?:es tut mir leid|ich kann (?:nicht|leider|das bild)|leider kann ich|als (?:KI|sprachmodell))\b",
    r"\bhier ist (?:die|eine)\b",
    r"\b(?:je suis désolée?|désolée?,|je ne peux pas|en tant qu['’](?:IA|assistant|intelligence))",
    r"\bvoici (?:la|une) (?:desc|lég)",
    r"\b(?:lo siento|no puedo (?:ver|ayudar|proporcionar|describir)|como (?:modelo|asistente|una IA))\b",
    r"\baquí (?:está|tienes)\b",
    r"\b(?:desculpe|não (?:posso|consigo) (?:ver|ajudar|fornecer)|como (?:um modelo|uma IA)|aqui está)\b",
    r"\b(?:mi dispiace|non posso (?:vedere|aiutare)|ecco (?:la|una) (?:descrizione|didascalia))\b",
)

_TO_THE_USER = _any_of(
    r"\b(?:let me know|I hope (?:this|that)|feel free to|would you like|do you (?:want|need)|is there anything)\b",
    r"\bplease (?:provide|share|upload|note|let|specify|give|describe)\b",
    r"\b(?:thank you for|you(?:['’]ve| have) (?:provided|given|shared)|you provided)\b",
    r"\b(?:happy to help|how can I (?:help|assist))\b",
)

_OF_THE_TASK = _any_of(
    r"\balt[ -]text\b",
    r"\b(?:the|this|both|two|first|second|original|combined|merged|fused|new) (?:captions?|texts|descriptions?)\b",
    r"\b(?:raw|web|first|second) (?:text|caption)\b",
    r"\b(?:prompt|instructions?) (?:says?|asks?|above|below)\b",
)

_MARKUP = _any_of(
    r"</?[a-z][a-z0-9]{0,10}(?:\s[^<>]{0,200})?/?>",
    r"```|\*\*|[{}]|\\[a-z]{2,}",
    r"!?\[[^\]\n]{0,200}\]\(",
    r"&(?:[a-z]{2,8}|#\d{1,6});",
    r"^#+\s",
)

_ADDRESS = _any_of(
    r"https?://|\bwww\.",
    r"[\w.+-]{1,64}@[\w-]{1,63}\.\w{2,}",
    r"\b[\w-]{1,63}\.(?:com|org|net|io)\b",
    r"#\w{3,}",
)

PATTERNS = {
    "control tokens": CONTROL_TOKEN,
    "a refusal": _REFUSAL,
    "boilerplate of another language": _OTHER_LANGUAGES,
    "speaks to the user": _TO_THE_USER,
    "speaks of its task": _OF_THE_TASK,
    "markup or code": _MARKUP,
    "an address": _ADDRESS,
}

# A phrase that announces a caption, at the beginning of an answer.
LEAD_IN = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok)\b[,!.:]*\s+)?"
    r"(?:here(?:['’]s| is)\s[^:]{1,80}:"
    r"|(?:(?:the|a|my)\s+)?(?:\w+\s+){0,2}(?:caption|description|answer|output|sentence)s?\s*:)\s*",
    re.IGNORECASE,
)
