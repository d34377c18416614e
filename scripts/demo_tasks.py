"""The questions that the demo model learns, and their split into training and graded ones.

There are six kinds of question, each with two wordings: sums, differences and comparisons of
numbers from 1 to 99, and words reversed, sorted by letter or put in capitals. A person can check
each of them at a glance.

The split is by content, not by wording:

* Numbers: a hash of the unordered pair of operands decides whether the pair is graded or trained
  on. A graded pair is in no training question of any kind, in neither order.
* Words: the training words are made of random letters and syllables. All graded words are the
  English words of ``GRADED_WORDS``, none of which is ever trained on.
"""

import random
import zlib

ADD, SUBTRACT, LARGER, REVERSE, SORT, CAPITALS = "add", "subtract", "larger", "reverse", "sort", "capitals"

# Every wording ends in a newline: it marks the end of the question, the answer follows.
WORDINGS = {
    ADD: ("What is {a} + {b}?\n", "Add {a} and {b}.\n"),
    SUBTRACT: ("What is {a} - {b}?\n", "Subtract {b} from {a}.\n"),
    LARGER: ("Which is larger, {a} or {b}?\n", "Which is more, {a} or {b}?\n"),
    REVERSE: ("Reverse the word {w}.\n", "Spell {w} backwards.\n"),
    SORT: ("Sort the letters of {w}.\n", "Put {w} in letter order.\n"),
    CAPITALS: ("Write {w} in capitals.\n", "Spell {w} in capitals.\n"),
}
NUMBER_TASKS = (ADD, SUBTRACT, LARGER)

# How often a task is drawn in training: the harder ones more often.
TRAINING_SHARE = {ADD: 0.26, SUBTRACT: 0.26, LARGER: 0.12, REVERSE: 0.13, SORT: 0.19, CAPITALS: 0.04}
# How many of the 500 graded questions each task has.
GRADED_COUNT = {ADD: 100, SUBTRACT: 80, LARGER: 60, REVERSE: 100, SORT: 100, CAPITALS: 60}

GRADED_WORDS = """
act add age air ant arm art ash bag bat bed bee big bow box boy bus cap car cat cow cry cup day den dog
dry ear egg elm eye fan far fig fin fish fog fox fun gap gem hat hen hill hot ice ink jam jar jet joy key
kit lab lamp leaf leg lip log man map mint moon mud net nut oak oar oil owl pan paw pea pen pet pie pig
pot rain ram rat red rib road rock rope rose row rug salt sand sea seed ship shoe silk sky snow soap song
star sun tea ten tie tin toe top toy tree van wax web wind wing wolf wood yak zoo
acorn actor adult album alarm amber angel ankle apple apron arrow atlas bacon badge baker basin beach
beard berry birch bird black blade blue boat bone book brain branch brave bread brick bridge bright
brook broom brush bucket butter button cabin cable camel camera candle canoe canyon carbon carpet
carrot castle cave cedar cellar chain chair chalk cheese cherry chess chest circle clay clear clever
cliff cloak clock cloth cloud clover coast cobalt coffee copper coral corn cotton cousin crane cream
crown curve dance danger desert diary dinner doctor dragon drawer dream dress drum eagle early earth
east elbow empty energy engine evening fabric falcon family farmer father feather fence field finger
flame flint floor flour flower flute forest fossil friend frost fruit garden garlic giant ginger glass
glove gold grape grass green guitar hammer harbor harp hawk hazel heart helmet heron hobby honest
honey horse hotel house iron island ivory jacket jewel jungle juice kettle kitten knife ladder lake
lantern laser laugh leather lemon letter light lily linen lion lizard lunch magnet maple marble market
meadow medal melon merry metal milk mirror modest monkey month moss mother motor mouse music needle
nephew nickel night noble north novel number nurse oasis ocean olive onion orange orchid organ otter
oven oxygen paddle paint palace paper parcel parrot pearl pebble pencil people pepper piano pillow
pilot pirate planet plant plaza plum pocket poem poet pond potato powder prince puzzle quartz queen
quiet rabbit radio rapid raven ribbon river robin rocket saddle salad salmon school season shadow
sheep shell shore silver simple singer sister skate smile smoke smooth socket spark spice spider
spiral spring square stable stamp statue steam steel stone storm story street stream sugar summer
sunset swan table tailor temple thread throne thumb thunder ticket tiger timber toast tomato tower
trail train travel triple trout trumpet tulip tunnel turtle uncle valley vanilla velvet violet violin
voice wagon walnut water whale wheat wheel white willow window winter wizard wonder world yellow
young zebra
"""

MIN_LETTERS, MAX_LETTERS = 3, 6
GRADED_WORDS = sorted({w for w in GRADED_WORDS.split() if MIN_LETTERS <= len(w) <= MAX_LETTERS})
_GRADED_WORD_SET = frozenset(GRADED_WORDS)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FREQUENCY = (8, 2, 4, 4, 12, 2, 3, 3, 7, 1, 2, 6, 3, 7, 7, 3, 1, 8, 7, 7, 4, 1, 2, 1, 2, 1)
_ONSETS = ("b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sm sn sp st str "
           "sw t th tr tw v w wh y z").split()
_VOWELS = "a a e e i i o o u ai ea ee oa oo ou y".split()
_CODAS = "b ck d f g k l ll m n nd ng nt p r rn rd rt s ss st t tch x".split() + [""] * 8


def is_graded_pair(a, b):
    """Whether the numbers a and b, in either order, are held out of training: one pair in ten is."""
    low, high = min(a, b), max(a, b)
    return zlib.crc32(f"{low} {high}".encode()) % 10 == 0


def answer(task, content):
    """The right answer; content is a pair of numbers or a word."""
    if task in NUMBER_TASKS:
        a, b = content
        return str({ADD: a + b, SUBTRACT: a - b, LARGER: max(a, b)}[task])
    return {REVERSE: content[::-1], SORT: "".join(sorted(content)), CAPITALS: content.upper()}[task]


def prompt(task, content, wording):
    """The text of the question in one of its wordings."""
    template = WORDINGS[task][wording]
    if task in NUMBER_TASKS:
        return template.format(a=content[0], b=content[1])
    return template.format(w=content)


def _draw_pair(rng, task, graded):
    while True:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        if task == SUBTRACT and a < b:
            a, b = b, a
        if task == LARGER and a == b:
            continue
        if is_graded_pair(a, b) == graded:
            return a, b


def _draw_training_word(rng):
    """Random letters (so that every order of letters occurs) or syllables (as in English)."""
    while True:
        if rng.random() < 0.5:
            # Longer words more often: they are the harder ones.
            length = rng.choice((3, 4, 4, 5, 5, 5, 6, 6, 6))
            weights = _FREQUENCY if rng.random() < 0.5 else None
            word = "".join(rng.choices(_LETTERS, weights, k=length))
        else:
            word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                           for _ in range(rng.choice((1, 2, 2))))
        if MIN_LETTERS <= len(word) <= MAX_LETTERS and word not in _GRADED_WORD_SET:
            return word


def draw_training_question(rng, shares=None):
    """A random training question: (task, content, prompt, answer)."""
    shares = shares or TRAINING_SHARE
    task = rng.choices(list(shares), list(shares.values()))[0]
    content = _draw_pair(rng, task, graded=False) if task in NUMBER_TASKS else _draw_training_word(rng)
    assert not is_held_out(task, content)
    return task, content, prompt(task, content, rng.randrange(2)), answer(task, content)


def is_held_out(task, content):
    """Whether the content of a question belongs to the graded side of the split."""
    return is_graded_pair(*content) if task in NUMBER_TASKS else content in _GRADED_WORD_SET


def graded_questions(seed=20):
    """The graded questions as (id, task, prompt, answer): a fixed list without repetition."""
    rng = random.Random(seed)
    questions = []
    for task, count in GRADED_COUNT.items():
        seen = set()
        while len(seen) < count:
            content = (_draw_pair(rng, task, graded=True) if task in NUMBER_TASKS
                       else rng.choice(GRADED_WORDS))
            if content in seen:
                continue
            seen.add(content)
            assert is_held_out(task, content)
            questions.append((f"{task}-{len(seen):03d}", task, prompt(task, content, len(seen) % 2),
                              answer(task, content)))
    return questions
