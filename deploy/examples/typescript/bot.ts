/**
 * A bot for Turnwise in TypeScript, with Node.js alone: streams its answer word by word.
 *
 *     node deploy/examples/typescript/bot.ts 9000
 *
 * Node.js 22.18 or newer runs this file as it is; with an older one, `npx tsx bot.ts`. BOT_TOKEN, if it is set, is what the
 * calls must carry as a bearer token.
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { type AddressInfo } from "node:net";
import { setTimeout as pause } from "node:timers/promises";

interface Turn {
  turn_id: string;
  attempt: number;
  conversation: { id: string; platform: string; metadata: Record<string, unknown> };
  messages: { text: string; payload?: string }[];
  history: { role: "user" | "assistant" | "tool" | "system"; content: string }[];
  prompt?: string;
}

interface Answer {
  replies: { content: string; buttons?: { label: string; payload?: string }[] }[];
  metadata?: Record<string, unknown>;
  handoff?: boolean;
}

const TOKEN = process.env.BOT_TOKEN;

/** What to say. Everything that has to last is in the metadata: the same turn may be asked about twice. */
function answer(turn: Turn): Answer {
  const text = turn.messages.at(-1)?.text.trim() ?? "";
  if (/\bhuman\b/i.test(text)) {
    return { replies: [{ content: "A colleague will be with you." }], handoff: true };
  }
  const visits = Number(turn.conversation.metadata.visits ?? 0) + 1;
  return { replies: [{ content: `This is visit ${visits}. You said: ${text}` }], metadata: { visits } };
}

async function respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  if (TOKEN && request.headers.authorization !== `Bearer ${TOKEN}`) {
    response.writeHead(401).end();
    return;
  }
  const said = answer(JSON.parse(Buffer.concat(chunks).toString("utf8")) as Turn);
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const send = (event: string, data: unknown) => response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  for (const word of said.replies[0].content.split(/(?<= )/)) {
    send("delta", { text: word });
    await pause(10);
  }
  // Only this counts: the deltas are for those who watch.
  send("reply", said);
  response.end();
}

const server = createServer((request, response) => {
  respond(request, response).catch(() => {
    // A stream that has begun can only be cut; Turnwise takes that for a failure and asks again.
    if (response.headersSent) response.destroy();
    else response.writeHead(500).end();
  });
});
server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}/turn`);
});
