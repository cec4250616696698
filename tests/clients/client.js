// A client made from the protos alone: everything a user does first, with TLS and a token.
// Arguments: the folder of the protos, the address, the file of the root, the file of the token.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const [protos, address, root, tokenFile] = process.argv.slice(2);
const loaded = loader.loadSync('pressmark/v1/article_service.proto', {
  includeDirs: [protos], enums: String, longs: Number, defaults: false,
});
const { ArticleService } = grpc.loadPackageDefinition(loaded).pressmark.v1;
const token = fs.readFileSync(tokenFile, 'utf8').trim();
const signed = grpc.credentials.createFromMetadataGenerator((_, done) => {
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  done(null, metadata);
});
const credentials = grpc.credentials.combineChannelCredentials(
  grpc.credentials.createSsl(fs.readFileSync(root)), signed);
const articles = new ArticleService(address, credentials);

const call = (method, request) => new Promise((resolve, reject) => {
  articles[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
});
const article = (number) => ({
  title: `Node ${number}`, source: 'Node', url: `https://node.example/${number}`, body: `Number ${number}.\n`,
});

// What google.rpc says of errors.
const { root: errors } = protobuf.parse(`syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }
  message BadRequest { message FieldViolation { string field = 1; } repeated FieldViolation field_violations = 1; }`);
const details = (error) => {
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  const found = {};
  for (const { type_url: url, typeUrl, value } of errors.lookupType('google.rpc.Status').decode(bytes).details) {
    const name = (url ?? typeUrl).split('/')[1];
    const type = name.startsWith('google.rpc.') && errors.lookup(name);
    if (type) found[name.split('.')[2]] = type.decode(value);
  }
  return found;
};

async function main() {
  const put = await call('putArticle', { article: article(0) });
  assert.strictEqual(put.outcome, 'PUT_OUTCOME_CREATED');
  const again = await call('putArticle', { article: article(0) });
  assert.deepStrictEqual([again.outcome, again.id], ['PUT_OUTCOME_DUPLICATE', put.id]);
  const got = await call('getArticle', { id: put.id.slice(0, 12) });
  assert.strictEqual(got.article.body, 'Number 0.\n');

  // One article is bad; the others are stored all the same.
  const bad = { title: 'two\nlines', body: 'x' };
  const importing = articles.importArticles();
  importing.write({ articles: [article(1), bad] });
  for (let number = 2; number < 10; number += 1) importing.write({ articles: [article(number)] });
  importing.end();
  const results = [];
  for await (const answer of importing) results.push(...answer.results);
  assert.deepStrictEqual(results.map((result) => result.index), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const refused = results.filter((result) => result.error);
  assert.deepStrictEqual(refused.map(({ error }) => [error.reason, error.field]), [['ARTICLE_INVALID', 'title']]);

  const selector = { sources: ['Node'] };
  const listed = [];
  let page = '';
  do {
    const answer = await call('listArticles', { selector, pageSize: 3, pageToken: page });
    listed.push(...answer.articles.map((found) => found.id));
    page = answer.nextPageToken;
  } while (page);
  assert.strictEqual(new Set(listed).size, 10);
  assert.strictEqual(listed.length, 10);
  const scanned = [];
  for await (const chunk of articles.scanArticles({ selector })) scanned.push(...chunk.articles.map((found) => found.id));
  assert.deepStrictEqual([...scanned].sort(), [...listed].sort());

  const seen = [];
  const watch = articles.watchArticles({ fromSequence: 1, selector });
  try {
    for await (const news of watch) {
      seen.push(...(news.changes ?? []).map((change) => change.stored.id));
      if (seen.length === 10) break;
    }
  } catch (error) {
    if (error.code !== grpc.status.CANCELLED) throw error;
  }
  watch.cancel();
  assert.deepStrictEqual(seen, scanned);

  await assert.rejects(call('putArticle', { article: bad }), (error) => {
    assert.strictEqual(error.code, grpc.status.INVALID_ARGUMENT);
    const { ErrorInfo: info, BadRequest: request } = details(error);
    assert.deepStrictEqual([info.reason, info.domain], ['ARTICLE_INVALID', 'pressmark']);
    assert.strictEqual(request.fieldViolations[0].field, 'article.title');
    return true;
  });
  await assert.rejects(call('deleteArticle', { id: put.id, reason: 'no' }), { code: grpc.status.PERMISSION_DENIED });
  articles.close();
  console.log('node is content');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
