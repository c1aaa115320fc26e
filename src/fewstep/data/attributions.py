"""Authors and licences of data sets, which what was trained on them must name."""

ATTRIBUTIONS = {
    "digits": "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, UCI "
    "Machine Learning Repository, doi:10.24432/C50P49), CC BY 4.0; its pixel values were scaled",
    "emoji": "Noto Emoji (Google LLC, github.com/googlefonts/noto-emoji), Apache-2.0, with "
    "captions of Unicode CLDR, Unicode-3.0; images were scaled to 32 x 32 pixels and put on white",
    "fashion-mnist": "Fashion-MNIST (Zalando SE, 2017), MIT",
}
"""By the names of data sets; those of other sets are not recorded."""
