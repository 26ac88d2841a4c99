// Hocuspocus as its guide starts it: in memory, or with its SQLite extension if a file is named.
import { Server } from "@hocuspocus/server";

const [address, port, file] = process.argv.slice(2);
const extensions = [];
if (file) {
  const { SQLite } = await import("@hocuspocus/extension-sqlite");
  extensions.push(new SQLite({ database: file }));
}
const server = new Server({ address, port: Number(port), quiet: true, extensions });
await server.listen();
console.log(`ready ${address}:${port}`);
