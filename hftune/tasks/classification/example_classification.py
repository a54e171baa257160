"""A small corpus for those who have no data at hand: messages to a shop, English and Korean.

A seeded grammar writes them: eight intents, each with its phrases, in sentences that begin, end and
digress alike. A message may mention what another intent is about ("I already paid, but ..."), so
that single words decide little, and people mistype. What it is not: language that people wrote.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

__all__ = ["example_dataset", "example_rows"]

_ROWS = 4000

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

# What a message says of the other intents: that there is nothing to ask about them.
_MENTIONED = {
    "delivery": ("the parcel came in time", "배송은 빨랐고"),
    "refund": ("i do not want my money back", "환불은 필요 없고"),
    "cancel": ("i do not want to cancel", "주문 취소는 아니고"),
    "exchange": ("i do not need another colour or size", "교환은 괜찮고"),
    "payment": ("the payment went through with my card", "결제는 잘 됐고"),
    "defect": ("nothing is broken", "고장 난 곳은 없고"),
    "question": ("i have read the manual and know what it weighs", "설명서는 다 읽었고"),
    "praise": ("i usually love this shop", "평소에는 마음에 들었고"),
}
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
    asked = draw.choice(_ASKED[intent][language])
    text = asked.format(draw.choice(_THINGS[language::2]))
    if draw.random() < 0.6:
        other = draw.choice([name for name in _MENTIONED if name != intent])
        mentioned = _MENTIONED[other][language]
        if language:
            text = f"{mentioned} {text}"
        else:
            text = draw.choice((f"{mentioned}, but {text}", f"{text}, although {mentioned}"))
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
