// Makes a container in a blob service: container.js URL KEY NAME, where the last part of the URL's path
// is the account. Signs as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
// says.
"use strict";

const { createHmac } = require("node:crypto");

const VERSION = "2021-08-06";

async function main() {
  const [service, key, name] = process.argv.slice(2);
  const url = new URL(`${service}/${name}?restype=container`);
  const account = new URL(service).pathname.split("/").pop();
  const date = new Date().toUTCString();
  const headers = { "x-ms-date": date, "x-ms-version": VERSION };
  // The verb and eleven headers that are not sent come first.
  const signed =
    `PUT${"\n".repeat(12)}x-ms-date:${date}\nx-ms-version:${VERSION}\n` +
    `/${account}${url.pathname}\nrestype:container`;
  const hmac = createHmac("sha256", Buffer.from(key, "base64")).update(signed);
  headers.authorization = `SharedKey ${account}:${hmac.digest("base64")}`;
  const answer = await fetch(url, { method: "PUT", headers });
  if (answer.status !== 201) {
    throw new Error(`${answer.status} ${await answer.text()}`);
  }
}

main();
