"""The studio's page in Streamlit's AppTest."""

from streamlit.testing.v1 import AppTest


def script(addresses):
    from fewstep.studio.page import show

    show(addresses)


def open_page(folder, **query):
    page = AppTest.from_function(script, kwargs={"addresses": [str(folder)]}, default_timeout=30)
    for name, value in query.items():
        page.query_params[name] = value
    return page.run()
