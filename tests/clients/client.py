"""A client generated from the protos alone: everything a user does first, with TLS and a token.

Arguments: the folder of the protos, the address, the file of the root, the file of the token.
"""

import importlib
import pathlib
import sys
import tempfile

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

protos, address, root, token = sys.argv[1:]
generated = tempfile.mkdtemp()
include = pathlib.Path(importlib.import_module("grpc_tools").__file__).parent / "_proto"
files = [str(path) for path in pathlib.Path(protos).rglob("*.proto")]
outputs = [f"--python_out={generated}", f"--grpc_python_out={generated}"]
assert protoc.main(["protoc", f"-I{protos}", f"-I{include}", *outputs, *files]) == 0
sys.path.insert(0, generated)
pb = importlib.import_module("pressmark.v1.article_service_pb2")
rpc = importlib.import_module("pressmark.v1.article_service_pb2_grpc")

credentials = grpc.composite_channel_credentials(
    grpc.ssl_channel_credentials(pathlib.Path(root).read_bytes()),
    grpc.access_token_call_credentials(pathlib.Path(token).read_text().strip()),
)
articles = rpc.ArticleServiceStub(grpc.secure_channel(address, credentials))


def article(number):
    """An article that differs from those of other numbers."""
    return pb.Article(
        title=f"Python {number}",
        source="Python",
        url=f"https://python.example/{number}",
        body=f"Number {number}.\n",
    )


put = articles.PutArticle(pb.PutArticleRequest(article=article(0)))
assert put.outcome == pb.PUT_OUTCOME_CREATED, put
again = articles.PutArticle(pb.PutArticleRequest(article=article(0)))
assert (again.outcome, again.id) == (pb.PUT_OUTCOME_DUPLICATE, put.id), again
got = articles.GetArticle(pb.GetArticleRequest(id=put.id[:12])).article
assert (got.id, got.body) == (put.id, "Number 0.\n"), got

# One article is bad; the others are stored all the same.
bad = pb.Article(title="two\nlines", body="x")
sent = [article(1), bad, *[article(number) for number in range(2, 10)]]
requests = iter([pb.ImportArticlesRequest(articles=sent)])
results = [result for answer in articles.ImportArticles(requests) for result in answer.results]
assert [result.index for result in results] == list(range(10)), results
refused = [result for result in results if result.HasField("error")]
assert [(r.index, r.error.reason, r.error.field) for r in refused] == [
    (1, "ARTICLE_INVALID", "title")
], refused

selector = pb.ArticleSelector(sources=["Python"])
listed, page = [], ""
while True:
    answer = articles.ListArticles(
        pb.ListArticlesRequest(selector=selector, page_size=3, page_token=page)
    )
    listed += [found.id for found in answer.articles]
    page = answer.next_page_token
    if not page:
        break
assert len(listed) == len(set(listed)) == 10, listed
scanned = [
    found.id
    for chunk in articles.ScanArticles(pb.ScanArticlesRequest(selector=selector))
    for found in chunk.articles
]
assert sorted(scanned) == sorted(listed), scanned

watch = articles.WatchArticles(pb.WatchArticlesRequest(from_sequence=1, selector=selector))
seen = []
for news in watch:
    seen += [change.stored.id for change in news.changes]
    if len(seen) == 10:
        break
watch.cancel()
assert seen == scanned, seen

try:
    articles.PutArticle(pb.PutArticleRequest(article=bad))
    raise AssertionError("a bad article was stored")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    details = {detail.type_url.split(".")[-1]: detail for detail in rpc_status.from_call(error).details}
    info = error_details_pb2.ErrorInfo()
    assert details["ErrorInfo"].Unpack(info)
    assert (info.reason, info.domain) == ("ARTICLE_INVALID", "pressmark"), info
    request = error_details_pb2.BadRequest()
    assert details["BadRequest"].Unpack(request)
    assert request.field_violations[0].field == "article.title", request
try:
    articles.DeleteArticle(pb.DeleteArticleRequest(id=put.id, reason="no"))
    raise AssertionError("a writer deleted")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
print("python is content")
