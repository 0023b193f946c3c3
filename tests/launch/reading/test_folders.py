"""Folders of images: links, loops, names of any bytes."""

import os

import pytest

from launch.reading import InputError, MissingInput, folders


@pytest.fixture
def tree(tmp_path):
    """Make files (`name`), folders (`name/`) and links (`name -> target`) below a folder; gives the folder."""

    def make(*entries: str, root: str = "photos"):
        top = tmp_path / root
        top.mkdir(exist_ok=True)
        for entry in entries:
            name, _, target = entry.partition(" -> ")
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if target:
                path.symlink_to(target)
            elif entry.endswith("/"):
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(b"x")
        return top

    return make


def names(folder, **options):
    return list(folders.images(folder, **options).names)


def test_extensions_and_order(tree):
    top = tree("b.jpg", "a.PNG", "sub/c.webp", "sub/notes.txt", "a/z.tif", "x.jpg/", "x.jpg/y.gif", "readme")
    listing = folders.images(str(top))
    assert listing.names == ("a.PNG", "a/z.tif", "b.jpg", "sub/c.webp", "x.jpg/y.gif")
    assert listing.paths[0] == top / "a.PNG" and len(listing) == 5 and listing.notes == ()
    assert names(top, extensions=(".txt",)) == ["sub/notes.txt"]


def test_a_link_to_its_own_folder(tree):
    listing = folders.images(tree("0.jpg", "1.jpg", "2.jpg", "all -> ."))
    assert listing.names == ("0.jpg", "1.jpg", "2.jpg")
    (note,) = listing.notes
    assert note.endswith("photos/all is skipped: it leads to a folder that contains it")


@pytest.mark.parametrize(
    "entries, listed, notes",
    [
        (["a/b/0.jpg", "a/b/up -> ../.."], ["a/b/0.jpg"], 1),
        (["a/0.jpg", "b -> a"], ["a/0.jpg"], 1),
        (["b/0.jpg", "a -> b"], ["b/0.jpg"], 1),  # the real folder's name, whichever comes first
        (["a/0.jpg", "a/x -> ../b", "b/1.jpg", "b/y -> ../a"], ["a/0.jpg", "b/1.jpg"], 2),
        (["0.jpg", "1.jpg -> 0.jpg"], ["0.jpg"], 1),
        (["1.jpg", "0.jpg -> 1.jpg"], ["1.jpg"], 1),
        (["0.jpg", "1.jpg -> 2.jpg", "2.jpg -> 0.jpg"], ["0.jpg"], 2),
        (["photo", "1.jpg -> photo", "2.jpg -> photo"], ["1.jpg"], 1),  # the file itself does not count as an image
        (["0.jpg", "x -> loop", "loop -> x"], ["0.jpg"], 0),
        (["0.jpg", "notes.txt -> nowhere"], ["0.jpg"], 0),
    ],
)
def test_each_real_file_once(tree, entries, listed, notes):
    listing = folders.images(tree(*entries))
    assert list(listing.names) == listed and len(listing.notes) == notes


def test_what_is_hidden_is_skipped(tree):
    """Thumbnails, the trash, what macOS writes beside files; links into hidden folders count, as in git-annex."""
    top = tree("a.jpg", "._a.jpg", ".trash/b.jpg", "sub/.thumbnails/c.jpg", ".notes.txt", "d.jpg -> .git/annex/d.jpg")
    (top / ".git/annex").mkdir(parents=True)
    (top / ".git/annex/d.jpg").touch()
    listing = folders.images(top)
    assert listing.names == ("a.jpg", "d.jpg")
    assert listing.notes == (f"{top}/._a.jpg and 3 more are skipped: hidden, by the dot before the name",)
    tree(".only.jpg", root="hidden")
    with pytest.raises(MissingInput, match=r"no images .*in it \(.*/\.only\.jpg is skipped: hidden"):
        folders.images(top.parent / "hidden")


def test_links_that_lead_out(tree, tmp_path):
    tree("0.jpg", "sub/1.jpg", "sub/2.jpg", root="pool")
    top = tree("a -> ../pool", "b.jpg -> ../pool/sub/1.jpg", "c -> ../pool/sub", "d.jpg -> ../pool2/3.jpg", "e -> a")
    tree("3.jpg", root="pool2")
    listing = folders.images(top)
    assert listing.names == ("a/0.jpg", "a/sub/1.jpg", "a/sub/2.jpg", "d.jpg")
    assert len(listing.notes) == 3
    (tmp_path / "link").symlink_to("photos")
    assert names(tmp_path / "link") == list(listing.names)


def test_a_folder_of_links_alone(tree):
    tree(*(f"{i}.jpg" for i in range(20)), root="pool")
    top = tree(*(f"{i}.jpg -> ../pool/{i}.jpg" for i in range(0, 20, 2)))
    assert len(names(top)) == 10


def test_what_is_refused(tree, tmp_path):
    with pytest.raises(MissingInput, match="nowhere: no such file or folder"):
        names(tmp_path / "nowhere")
    with pytest.raises(MissingInput, match=r"empty: no images \(\.jpg .*\) in it$"):
        names(tree("notes.txt", root="empty"))
    with pytest.raises(MissingInput, match=r"no images .* in it \(.*all is skipped"):
        names(tree("all -> .", root="loop"))
    with pytest.raises(InputError, match=r"0\.jpg: is a broken link \(No such file or directory\); remove it"):
        names(tree("0.jpg -> nowhere.jpg", root="broken"))
    with pytest.raises(InputError, match=r"0\.jpg: is a broken link"):
        names(tree("0.jpg -> 0.jpg", root="self"))
    with pytest.raises(InputError, match=r"cannot be read .*too long"):
        names("x" * 5000)
    os.mkfifo(tree("0.jpg", root="pipe") / "1.jpg")
    with pytest.raises(InputError, match=r"1\.jpg: is a pipe"):
        names(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a valid path"):
        names("a\0b")


def test_a_subfolder_without_permission(tree, monkeypatch):
    """os.walk passes over it."""
    top = tree("0.jpg", "sub/1.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(InputError, match=r"photos/sub: cannot be read \(Permission denied\)"):
        names(top)


def test_names_of_any_bytes(tree):
    top = tree("cost_$5_$6.png")
    for i in range(3):
        with open(os.fsencode(top) + b"/caf\xe9%d.png" % i, "wb"):
            pass
    listing = folders.images(top)
    assert len(listing) == 4 and all(path.is_file() for path in listing.paths)
    os.symlink(top, os.fsencode(top) + b"/\xff")
    (note,) = folders.images(top).notes
    assert note.encode() and r"photos/\xff is skipped" in note


def test_class_folders(tree):
    top = tree("cat/1.jpg", "cat/0.jpg", "dog/2.jpg", "dog/sub/3.jpg", "cat/all -> .", "dog/twin.jpg -> 2.jpg", "x.txt")
    assert folders.subfolders(top) == ("cat", "dog")
    listing, counts = folders.class_images(top, ("dog", "cat"))
    assert listing.names == ("dog/2.jpg", "dog/sub/3.jpg", "cat/0.jpg", "cat/1.jpg") and counts == (2, 2)
    assert len(listing.notes) == 2


def test_a_class_that_links_to_all_classes(tree):
    listing, counts = folders.class_images(tree("cat/0.jpg", "cat/up -> ..", "dog/1.jpg"), ("cat", "dog"))
    assert listing.names == ("cat/0.jpg", "dog/1.jpg") and counts == (1, 1)


@pytest.mark.parametrize(
    "entries",
    [
        ["cat/0.jpg", "dog/1.jpg", "dog/0.jpg -> ../cat/0.jpg"],
        ["cat/0.jpg", "dog/1.jpg", "cat/1.jpg -> ../dog/1.jpg"],
        ["cat/0.jpg", "dog/1.jpg", "dog/more -> ../cat"],
        ["cat/0.jpg", "dog/1.jpg", "cat/more -> ../dog"],
        ["cat/0.jpg", "dog -> cat"],
    ],
)
def test_an_image_in_two_classes(tree, entries):
    with pytest.raises(InputError, match=r"is in class 'dog' and, through a link, in class 'cat'; remove the link"):
        folders.class_images(tree(*entries), ("cat", "dog"))


def test_class_folders_that_are_missing_or_empty(tree):
    top = tree("cat/0.jpg", "dog/")
    with pytest.raises(MissingInput, match="dog: no images"):
        folders.class_images(top, ("cat", "dog"))
    with pytest.raises(MissingInput, match="cow: no such file or folder"):
        folders.class_images(top, ("cow",))
    assert folders.subfolders(tree("c -> cat", "l -> l")) == ("c", "cat", "dog")


def test_many_files(tree):
    top = tree()
    for i in range(200):
        (top / f"{i:03d}").mkdir()
        os.symlink("..", top / f"{i:03d}" / "up")
        (top / f"{i:03d}" / "a.jpg").touch()
    listing = folders.images(top)
    assert len(listing) == 200 and len(listing.notes) == 200
