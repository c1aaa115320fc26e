"""Authors and licences of data sets, which what was trained on them must name."""

ATTRIBUTIONS = {
    "digits": "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, UCI "
    "Machine Learning Repository, doi:10.24432/C50P49), CC BY 4.0; its pixel values were scaled",
    "fashion-mnist": "Fashion-MNIST (Zalando SE, 2017), MIT",
}
"""By the names of data sets; those of other sets are not recorded."""
