"""How each instructed rule is said: sentences for training, and others that are for testing only.

The fields in braces are the rule's parameters. A rule has eight sentences that are trained on and three that are
not, which differ in wording and in the order of the parameters.

Usage: ``PHRASES["erase"].train[0].format(colour="red")``
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    train: tuple[str, ...]
    held_out: tuple[str, ...]


PHRASES = {
    "recolour": Phrases(
        train=(
            "Change every {old} cell to {new}.",
            "Replace {old} with {new}.",
            "Wherever a cell is {old}, make it {new}.",
            "Turn all the {old} squares {new}.",
            "Recolour {old} as {new}.",
            "{old} cells become {new}.",
            "Make {new} out of everything that is {old}.",
            "Use {new} in the places where the grid has {old}.",
        ),
        held_out=(
            "Each {old} square should turn into {new}.",
            "Substitute {new} for {old}.",
            "If a cell is {old}, then it becomes {new}.",
        ),
    ),
    "swap": Phrases(
        train=(
            "Swap the colours {one} and {two}.",
            "Exchange {one} and {two}.",
            "{one} becomes {two}, and {two} becomes {one}.",
            "Let {one} and {two} trade places.",
            "Interchange the {one} cells with the {two} cells.",
            "Every {one} cell turns {two} and every {two} cell turns {one}.",
            "The colours {one} and {two} switch roles.",
            "Switch {one} with {two} and the other way round.",
        ),
        held_out=(
            "Swap {one} cells with {two} cells.",
            "{one} and {two} are to be exchanged with each other.",
            "Trade the two colours {one} and {two}.",
        ),
    ),
    "erase": Phrases(
        train=(
            "Erase every {colour} cell.",
            "Remove {colour} from the grid.",
            "Delete the {colour} squares.",
            "Make the {colour} cells empty.",
            "Clear away all that is {colour}.",
            "Take out {colour} and leave black behind.",
            "No {colour} cell may remain.",
            "Wipe the colour {colour} out.",
        ),
        held_out=(
            "Get rid of all {colour} cells.",
            "Every {colour} square is to be removed.",
            "Erase the colour {colour} wherever it appears.",
        ),
    ),
    "keep": Phrases(
        train=(
            "Keep only the {colour} cells.",
            "Erase everything except {colour}.",
            "Only {colour} stays, the rest goes.",
            "Remove all colours but {colour}.",
            "Leave the {colour} squares and clear the others.",
            "Nothing but {colour} should remain.",
            "Preserve {colour} and delete every other colour.",
            "Wipe out whatever is not {colour}.",
        ),
        held_out=(
            "Only the {colour} squares are kept.",
            "Delete everything other than {colour}.",
            "All cells that are not {colour} are erased.",
        ),
    ),
    "fill": Phrases(
        train=(
            "Fill the empty cells with {colour}.",
            "Colour the black background {colour}.",
            "Every black cell becomes {colour}.",
            "Paint {colour} wherever the grid is empty.",
            "Make the background {colour}.",
            "Put {colour} in all the blank squares.",
            "The empty space is filled by {colour}.",
            "Use {colour} for the black places.",
        ),
        held_out=(
            "Paint all the empty squares {colour}.",
            "Blank cells should be filled with {colour}.",
            "Give the background the colour {colour}.",
        ),
    ),
    "frame": Phrases(
        train=(
            "Draw a {colour} frame around the grid.",
            "Paint the border {colour}.",
            "All the outer cells become {colour}.",
            "Put a {colour} border along the four edges.",
            "Surround the picture with a {colour} frame.",
            "Make the outline of the grid {colour}.",
            "Colour the outermost ring {colour}.",
            "The rim of the grid turns {colour}.",
        ),
        held_out=(
            "Frame the grid in {colour}.",
            "Give the picture a border of {colour}.",
            "The outer ring of cells should be {colour}.",
        ),
    ),
    "corners": Phrases(
        train=(
            "Paint the four corners {colour}.",
            "Put {colour} in each corner.",
            "The corner cells become {colour}.",
            "Make every corner of the grid {colour}.",
            "Colour all corners {colour}.",
            "Set the corners to {colour}.",
            "Mark the four corner squares in {colour}.",
            "Each corner turns {colour}.",
        ),
        held_out=(
            "Colour the corner squares {colour}.",
            "A {colour} cell goes into every corner.",
            "The grid's four corners should be {colour}.",
        ),
    ),
    "diagonal": Phrases(
        train=(
            "Draw a {colour} diagonal from the top left to the bottom right.",
            "Paint the diagonal {colour}.",
            "The cells on the diagonal become {colour}.",
            "Make the main diagonal {colour}.",
            "Put a diagonal line of {colour} across the grid.",
            "Colour the diagonal cells {colour}.",
            "Mark the diagonal in {colour}.",
            "A {colour} line runs diagonally through the grid.",
        ),
        held_out=(
            "Set the diagonal to {colour}.",
            "Draw the main diagonal in {colour}.",
            "Every cell of the diagonal should be {colour}.",
        ),
    ),
    "edge": Phrases(
        train=(
            "Paint the {side} edge {colour}.",
            "Make the {side} side of the grid {colour}.",
            "Put {colour} along the {side} edge.",
            "All cells at the {side} become {colour}.",
            "Draw a {colour} line at the {side} of the grid.",
            "Colour the {side} border only, in {colour}.",
            "The cells of the {side} edge turn {colour}.",
            "A {colour} stripe covers the {side} side.",
        ),
        held_out=(
            "Colour the {side} edge {colour}.",
            "Draw a stripe of {colour} along the {side} side.",
            "The {side} side should be painted {colour}.",
        ),
    ),
    "shift": Phrases(
        train=(
            "Shift everything {direction} by one cell.",
            "Move the picture one step {direction}.",
            "Push all cells {direction}, leaving black behind.",
            "Slide the grid {direction} by one.",
            "Each cell moves one place {direction}.",
            "Displace the whole pattern {direction} by one square.",
            "The picture travels one step {direction} and what leaves is lost.",
            "Shift the contents {direction}; the gap is empty.",
        ),
        held_out=(
            "Move everything {direction} by one square.",
            "Slide all the cells one step {direction}.",
            "The whole picture shifts {direction} by one place.",
        ),
    ),
    "roll": Phrases(
        train=(
            "Roll the grid {direction} by one, wrapping around.",
            "Shift everything {direction} cyclically.",
            "Move all cells one step {direction}; those that leave come back on the other side.",
            "Rotate the rows or columns {direction} as on a cylinder.",
            "Cycle the picture {direction} by one cell with wrap-around.",
            "Wrap the grid around while moving it {direction}.",
            "Scroll {direction} by one, and what falls off returns at the opposite edge.",
            "Roll the pattern one place {direction} in a circle.",
        ),
        held_out=(
            "Roll everything {direction} by one cell with wrapping.",
            "Cyclically move the picture one step {direction}.",
            "Scroll the grid {direction}; cells that leave return on the opposite side.",
        ),
    ),
    "rotate": Phrases(
        train=(
            "Rotate the grid {turn}.",
            "Turn the picture {turn} by 90 degrees.",
            "Give the grid a quarter turn {turn}.",
            "Rotate everything 90 degrees {turn}.",
            "The picture is turned {turn} once.",
            "Spin the grid {turn} by a quarter.",
            "Make a {turn} quarter rotation.",
            "Apply a 90 degree rotation, {turn}.",
        ),
        held_out=(
            "Turn the whole grid a quarter {turn}.",
            "Rotate the picture by 90 degrees, going {turn}.",
            "Do a {turn} rotation of the grid.",
        ),
    ),
    "flip": Phrases(
        train=(
            "Flip the grid so that {sides} change places.",
            "Mirror the picture, exchanging {sides}.",
            "Reflect the grid: {sides} are swapped.",
            "Produce the mirror image with {sides} reversed.",
            "Reverse {sides}.",
            "Flip {sides}.",
            "The picture is mirrored, {sides} trade places.",
            "Reflect so that {sides} are interchanged.",
        ),
        held_out=(
            "Mirror the grid so that {sides} are exchanged.",
            "Flip the picture: {sides} are reversed.",
            "Make a mirror image in which {sides} change places.",
        ),
    ),
    "copy_edge": Phrases(
        train=(
            "Copy the {side} line of cells over the whole grid.",
            "Repeat the {side} line everywhere.",
            "Every line becomes a copy of the {side} one.",
            "Extend the {side} line across the grid.",
            "Stretch the cells of the {side} line over all others.",
            "Fill the grid with copies of the {side} line.",
            "All lines look like the {side} line.",
            "Smear the {side} line through the entire grid.",
        ),
        held_out=(
            "Repeat the {side} line over the entire grid.",
            "Make every line equal to the {side} line.",
            "Copies of the {side} line fill the grid.",
        ),
    ),
    "symmetric": Phrases(
        train=(
            "Make the grid symmetric by mirroring the {side} half.",
            "Reflect the {side} half onto the other half.",
            "Keep the {side} half and mirror it.",
            "The {side} half is copied as a mirror image to the opposite half.",
            "Complete the symmetry from the {side} half.",
            "Overwrite the other half with a reflection of the {side} half.",
            "Mirror the {side} half across the middle.",
            "Use the {side} half and its reflection.",
        ),
        held_out=(
            "Mirror the {side} half onto the opposite one.",
            "Make the picture symmetric, starting from the {side} half.",
            "The other half becomes a mirror image of the {side} half.",
        ),
    ),
}
