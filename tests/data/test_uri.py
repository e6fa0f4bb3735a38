import subprocess
import sys

import pytest

from attar.data.uri import parse, uri_slug
from attar.errors import DataError


def test_parts_of_a_uri():
    uri = parse("folder:/photos/of cats?size=14&zca")
    assert (uri.kind, uri.location, uri.size, uri.zca) == ("folder", "/photos/of cats", 14, True)
    assert parse("hf:user/name").location == "user/name"
    assert parse("digits").size is None
    assert (parse("folder:a?crop=64").crop, parse("folder:a?crop=64").size) == (64, None)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("fashion-minst", "did you mean 'fashion-mnist'"),
        ("", "unknown data"),
        ("folder", "names no path: write folder:PATH"),
        ("npz:", "names no path"),
        ("hf:", "names no data set"),
        ("digits:somewhere", "unknown data"),
        ("digits?sise=4", "unknown option 'sise' .* did you mean 'size'"),
        ("digits?size=big", "number of pixels"),
        ("digits?size=0", "number of pixels"),
        ("digits?size=-4", "number of pixels"),
        ("digits?zca=0.2", "takes no value"),
        ("folder:a?crop=big", "'crop' .* number of pixels"),
        ("digits?crop=4", "'crop' .* is for folder, hf, parquet"),
        ("wds:a.tar?crop=64", "pictures of a stream have one size"),
        ("parquet:a?stream&crop=64", "pictures of a stream have one size"),
        ("npz:a\0b", "NUL"),
    ],
)
def test_mistakes_are_named_with_the_way_out(uri, message):
    with pytest.raises(DataError, match=message):
        parse(uri)


@pytest.mark.parametrize(
    ("uri", "slug"),
    [
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist?size=14&zca", "fashion-mnist-14-zca"),
        ("folder:/photos/cats/", "folder-cats"),
        ("npz:../My Data.v2.npz", "npz-my-data"),
        ("hf:zalando-datasets/fashion_mnist", "hf-fashion-mnist"),
        ("folder:.", "folder"),
        ("folder:cats?crop=64", "folder-cats-64"),
    ],
)
def test_slugs_are_short_and_safe_in_file_names(uri, slug):
    assert uri_slug(uri) == slug


def test_uris_need_no_torch():
    code = "import sys; from attar.data import uri_slug; uri_slug('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
