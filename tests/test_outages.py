"""A bucket that does not answer is told from what a user has to mend: the same command is to be given again."""

import pytest

from dinov3seg_jax import processes
from dinov3seg_jax.errors import LOST, UserError, is_outage, run_command

botocore = pytest.importorskip("botocore.exceptions")
HttpError = pytest.importorskip("gcsfs.retry").HttpError


def of_s3(status):
    return botocore.ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def of_gcs(status):
    return HttpError({"code": status, "message": "no"})


def unreachable():
    return botocore.EndpointConnectionError(endpoint_url="http://nowhere")


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as one:
        return one


@pytest.mark.parametrize("make", [of_s3, of_gcs])
@pytest.mark.parametrize(("status", "expected"), [(503, True), (429, True), (500, True), (403, False), (404, False)])
def test_by_the_status(make, status, expected):
    assert is_outage(make(status)) is expected
    assert is_outage(raised(OSError(5, "said"), make(status))) is expected
    assert is_outage(raised(UserError("it is so; mend it."), raised(OSError(5, "said"), make(status)))) is expected


def test_by_the_connection():
    assert is_outage(unreachable())
    assert is_outage(pytest.importorskip("aiohttp").ClientPayloadError("cut"))
    assert is_outage(pytest.importorskip("fsspec.exceptions").FSTimeoutError())


def test_by_tensorstores_words(gcs, gcs_faults):
    import tensorstore

    bucket = gcs.removeprefix("gs://")
    store = {"driver": "gcs", "bucket": bucket, "path": "a/"}
    context = tensorstore.Context({"gcs_request_retries": {"max_retries": 1, "initial_delay": "10ms"}})
    for status, expected in ((503, True), (429, True), (403, False)):
        gcs_faults.clear()
        gcs_faults.answer(status)
        with pytest.raises(ValueError, match="ABORTED|PERMISSION_DENIED") as caught:
            tensorstore.KvStore.open(store, context=context).result().write("b", b"1").result()
        assert is_outage(raised(OSError(5, "said"), caught.value)) is expected


@pytest.mark.parametrize("error", [None, ValueError("503"), OSError(5, "a disk"), TimeoutError()])
def test_nothing_else_is(error):
    assert not is_outage(error)


def test_a_sentence_that_stands_for_it_hides_it():
    error = UserError("damaged; delete it.")
    error.__context__, error.__suppress_context__ = of_s3(503), True  # as `raise ... from None` does
    assert not is_outage(error)


def test_errors_in_a_circle_end():
    error = UserError("it is so; mend it.")
    error.__cause__ = error
    assert not is_outage(error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            raised(OSError(5, "Service Unavailable"), of_s3(503)),
            r"error: a bucket does not answer, or breaks off \(Serv",
        ),
        (
            raised(UserError("gs://b does not answer; check it."), of_gcs(503)),
            "error: gs://b does not answer; check it.",
        ),
    ],
)
def test_a_command_ends_with_the_status_of_what_may_be_tried_again(error, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == LOST == 75
    assert capsys.readouterr().err.startswith(said.replace("\\", ""))
    assert processes._report(error) == LOST
    assert capsys.readouterr().err.startswith(said.replace("\\", ""))
