"""The script that Streamlit runs for each page: `streamlit run app.py -- RUN ...`."""

import sys

from fewstep.studio.page import show

show(sys.argv[1:])
