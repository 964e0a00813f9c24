"""Which emoji form which class of the embedded model's training pictures.

Classes are lists of subcategories of the package's emoji.json, without pictures that do not show the class: it must be
recognisable at a glance in 64 x 64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PictureClass:
    """One class: the pictures of these subcategories, without excluded short names."""

    name: str
    subcategories: frozenset[str]
    exclude: frozenset[str] = field(default_factory=frozenset)


def _class(name: str, subcategories: str, exclude: str = "") -> PictureClass:
    return PictureClass(name, frozenset(subcategories.split()), frozenset(exclude.split()))


# In label order
CLASSES = (
    _class(
        "face",
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell "
        "face-hat face-glasses face-concerned face-negative",
        # not yellow and round
        "skull skull_and_crossbones face_in_clouds melting_face smiling_imp imp",
    ),
    _class(
        "person",
        "person person-role person-gesture",
        # whole figures among busts
        "pregnant_woman pregnant_man pregnant_person",
    ),
    _class(
        "hand",
        "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands hand-prop",
        # a bottle, a telephone, and sleeves
        "nail_care selfie pray",
    ),
    _class(
        "heart",
        "heart",
        # a letter, a punctuation mark, a square sign
        "love_letter heavy_heart_exclamation_mark_ornament heart_decoration",
    ),
    _class(
        "clock",
        "time",
        # no dial
        "hourglass hourglass_flowing_sand",
    ),
    _class("flag", "country-flag"),
    _class(
        "mammal",
        "animal-mammal cat-face monkey-face",
        # paw prints
        "feet",
    ),
    _class("fruit", "food-fruit food-vegetable"),
    _class(
        "vehicle",
        "transport-ground",
        # roadside objects, parts, and things to wear or sit in
        "manual_wheelchair motorized_wheelchair motorway railway_track oil_drum fuelpump wheel rotating_light "
        "traffic_light vertical_traffic_light octagonal_sign construction busstop skateboard roller_skate",
    ),
    _class(
        "building",
        "place-building place-religious",
        # materials, a crane, monuments, and hearts around a chapel
        "building_construction bricks rock wood statue_of_liberty tokyo_tower kaaba shinto_shrine wedding",
    ),
    _class(
        "sign",
        "alphanum arrow av-symbol",
        # round ones, and the blood groups of medicine
        "a b ab o2 congratulations secret m",
    ),
    _class(
        "shape",
        "geometric",
        # ornaments, and shapes of a few pixels
        "diamond_shape_with_a_dot_inside radio_button black_small_square white_small_square "
        "black_medium_small_square white_medium_small_square small_red_triangle_down small_blue_diamond "
        "small_orange_diamond",
    ),
)
