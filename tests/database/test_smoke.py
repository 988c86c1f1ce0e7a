def test_open(database):
    assert database.revision() == "0001"
