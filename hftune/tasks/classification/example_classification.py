"""A small corpus for those who have no data at hand: messages to a shop, English and Korean.

A seeded grammar writes them: eight intents, each with its phrases, in messages that begin and end
alike. Half of them hold two requests, of which one is over or someone else's, so that words alone
do not decide, and people mistype. What it is not: language that people wrote.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

__all__ = ["example_dataset", "example_rows"]

_ROWS = 4000
_TWO_REQUESTS = 0.5

# Intent: what is asked for, English and Korean. {} is a thing that was bought.
_ASKED = {
    "delivery": (
        ["where is my {}", "when does the {} arrive", "my {} has not come yet",
         "the courier lost my {}", "how long until the {} gets here"],
        ["{} 언제 오나요", "{} 배송이 너무 늦어요", "{} 아직 못 받았어요", "{} 어디쯤 왔나요",
         "{} 택배가 사라졌어요"],
    ),
    "refund": (
        ["i want my money back for the {}", "when do i get the refund of the {}",
         "please pay me back the {}", "the money for the {} has not come back",
         "i sent the {} back and saw no money"],
        ["{} 환불해 주세요", "{} 돈은 언제 돌려받나요", "{} 반품했는데 입금이 안 됐어요",
         "{} 환불은 며칠 걸리나요", "{} 값을 돌려주세요"],
    ),
    "cancel": (
        ["i do not want the {} any more", "please stop the order of the {}",
         "cancel the {} before it is sent", "i ordered the {} twice, take one out",
         "call off the {}"],
        ["{} 주문 취소해 주세요", "{} 이제 필요 없어요", "{} 보내지 말아 주세요",
         "{} 두 번 주문했으니 하나 빼 주세요", "{} 주문을 없던 일로 해 주세요"],
    ),
    "exchange": (
        ["the {} is too small, i need a larger one", "can i swap the {} for a blue one",
         "send me another {} instead of this one", "the {} has the wrong colour",
         "i would rather have a different {}"],
        ["{} 다른 색으로 바꿔 주세요", "{} 사이즈가 작아서 교환하고 싶어요",
         "{} 새것으로 바꿀 수 있나요", "{} 색이 달라요, 바꿔 주세요", "{} 교환은 어떻게 하나요"],
    ),
    "payment": (
        ["my card was declined for the {}", "can i pay the {} in parts",
         "i was charged twice for the {}", "the {} cost more than it said at the till",
         "which cards do you take for the {}"],
        ["{} 결제가 안 돼요", "{} 할부로 살 수 있나요", "{} 값이 두 번 빠져나갔어요",
         "{} 카드가 거절됐어요", "{} 계좌 이체로 낼 수 있나요"],
    ),
    "defect": (
        ["the {} is broken", "the {} does not turn on", "there is a crack in the {}",
         "the {} stopped working after a day", "a part of the {} is missing"],
        ["{} 고장 났어요", "{} 안 켜져요", "{} 금이 가 있어요", "{} 하루 만에 멈췄어요",
         "{} 부품이 하나 없어요"],
    ),
    "question": (
        ["how heavy is the {}", "does the {} come with a manual", "is the {} good for children",
         "do you still have the {} in stock", "what is the {} made of"],
        ["{} 무게가 얼마예요", "{} 설명서가 들어 있나요", "{} 아이가 써도 되나요",
         "{} 재고 있나요", "{} 무엇으로 만들었나요"],
    ),
    "praise": (
        ["i love the {}", "the {} is better than i thought", "thank you for the quick {}",
         "the {} works like a charm", "my mother is happy with the {}"],
        ["{} 정말 마음에 들어요", "{} 생각보다 훨씬 좋아요", "{} 빨리 와서 고마워요",
         "{} 아주 잘 쓰고 있어요", "{} 선물했더니 좋아하세요"],
    ),
}  # fmt: skip

# Two requests in one message: {0} is what is meant, {1} is over, or someone else's.
_FRAMES = (
    ("last week {1}, that is settled, now {0}", "i do not write because {1}, but because {0}",
     "{0}, and no, it is not that {1}", "my friend says {1}, i say {0}",
     "{0}, forget what i wrote before: {1}", "first {1}, you solved it, but {0}"),
    ("지난주에 {1} 했던 건 해결됐고 {0}", "{1} 그게 아니라 {0}",
     "{0} 그리고 {1} 그 얘기는 아니에요", "친구는 {1} 라는데 저는 {0}",
     "{0} 전에 쓴 {1} 글은 무시하세요", "{1} 이건 됐고요 {0}"),
)  # fmt: skip
_THINGS = (
    "kettle 주전자 lamp 조명 jacket 재킷 headphones 헤드폰 keyboard 키보드 backpack 배낭 tent 텐트 "
    "watch 시계 blender 믹서기 camera 카메라 chair 의자 shoes 신발 phone 휴대폰 umbrella 우산 "
    "bicycle 자전거 pillow 베개 mirror 거울 speaker 스피커 printer 프린터 scarf 목도리"
).split()
_OPENINGS = (
    ("", "hello,", "hi there,", "good morning,", "sorry to bother you,", "it is me again,"),
    ("", "안녕하세요,", "저기요,", "수고하십니다,", "문의드립니다.", "또 연락드려요,"),
)
_CLOSINGS = (
    ("", "thanks", "please answer soon", "i wrote you last week too", "what now", "!!"),
    ("", "감사합니다", "빨리 답 주세요", "지난주에도 글 남겼어요", "어떻게 하죠", "ㅠㅠ"),
)


def _message(intent: str, draw: random.Random) -> str:
    language = draw.randrange(2)

    def asked(name: str) -> str:
        return draw.choice(_ASKED[name][language]).format(draw.choice(_THINGS[language::2]))

    text = asked(intent)
    if draw.random() < _TWO_REQUESTS:
        other = draw.choice([name for name in _ASKED if name != intent])
        text = draw.choice(_FRAMES[language]).format(text, asked(other))
    parts = (draw.choice(_OPENINGS[language]), text, draw.choice(_CLOSINGS[language]))
    text = " ".join(part for part in parts if part)
    if draw.random() < 0.25:  # two neighbours change places
        place = draw.randrange(len(text) - 1)
        text = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text


def example_rows(count: int = _ROWS, seed: int = 0) -> list[tuple[str, str]]:
    """Returns messages and their intents, no message twice; the same seed gives the same rows.

    Args:
        count (int): How many, of each intent about as many. Defaults to 4000.
        seed (int): Another seed gives other messages. Defaults to 0.
    """
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        intent = draw.choice(list(_ASKED))
        rows.setdefault(_message(intent, draw), intent)
    return list(rows.items())


def example_dataset() -> datasets.Dataset:
    """Returns the rows as a data set with the columns ``text`` and ``label``."""
    import datasets

    texts, labels = zip(*example_rows(), strict=True)
    return datasets.Dataset.from_dict({"text": list(texts), "label": list(labels)})
