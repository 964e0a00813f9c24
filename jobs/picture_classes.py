"""Which emoji make which class of the embedded model's training pictures.

The rules name categories and subcategories of the package's emoji.json. Left out are pictures that stand in such
a subcategory and do not show the thing: a class must be recognisable at a glance in 64 x 64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PictureClass:
    """One class: pictures of these subcategories, without those whose short name is excluded."""

    name: str
    subcategories: frozenset[str]
    exclude: frozenset[str] = field(default_factory=frozenset)


def _class(name: str, subcategories: str, exclude: str = "") -> PictureClass:
    return PictureClass(name, frozenset(subcategories.split()), frozenset(exclude.split()))


# In label order
CLASSES = (
    _class(
        "face",
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-unwell face-hat "
        "face-glasses face-concerned face-negative",
        # not yellow round faces
        "skull skull_and_crossbones face_in_clouds melting_face smiling_imp imp",
    ),
    _class("person", "person person-role person-gesture", "pregnant_woman pregnant_man pregnant_person bowing_woman"),
    _class(
        "hand",
        "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands hand-prop",
        "nail_care selfie pray",
    ),
    _class("heart", "heart", "love_letter heavy_heart_exclamation_mark_ornament heart_decoration"),
    _class("clock", "time", "hourglass hourglass_flowing_sand"),
    _class("flag", "country-flag"),
    _class("mammal", "animal-mammal cat-face monkey-face", "feet"),
    _class("fruit", "food-fruit food-vegetable"),
    _class(
        "vehicle",
        "transport-ground",
        # parts of roads, and things without wheels or a body
        "manual_wheelchair motorized_wheelchair motorway railway_track oil_drum fuelpump wheel rotating_light "
        "traffic_light vertical_traffic_light octagonal_sign construction busstop skateboard roller_skate",
    ),
    _class(
        "building",
        "place-building place-religious",
        "building_construction bricks rock wood statue_of_liberty tokyo_tower kaaba shinto_shrine wedding",
    ),
    _class("sign", "alphanum arrow av-symbol", "a b ab o2 congratulations secret m copyright registered tm"),
    _class(
        "shape",
        "geometric",
        # ornaments, and shapes of a few pixels
        "diamond_shape_with_a_dot_inside radio_button black_small_square white_small_square "
        "black_medium_small_square white_medium_small_square small_red_triangle_down small_blue_diamond "
        "small_orange_diamond",
    ),
)
