// Talks to the daemon through a MessagePack-RPC package from npm that knows nothing of it:
//
//     node client.js PACKAGE host:port|unix:/path MODULE
//
// works on the states of MODULE, and prints what was answered as one JSON object.
"use strict";

// Connects to a target as `net.connect` takes it; gives back `call`, `notify` and `close`.
const packages = {
  "msgpack-rpc-lite": (target) => {
    const { Client } = require("msgpack-rpc-lite");
    const client = new Client(target);
    return {
      call: async (method, ...params) => (await client.request(method, ...params))[0],
      notify: (method, ...params) => client.notify(method, ...params),
      close: () => client.close(),
    };
  },

  // TCP only: its UnixClient takes each chunk it reads for exactly one message.
  "@ros2jsguy/msgpack-rpc-node": async ({ host, port }) => {
    const { Client, TcpClient } = require("@ros2jsguy/msgpack-rpc-node");
    const client = new Client(TcpClient, port, host);
    await client.connect();
    return client;
  },

  // Its first request is `nvim_get_api_info`, a method unknown to us. Not through its own `request()`: that
  // expects Nvim's [type, message] for an error, and would keep one letter of our string.
  neovim: (target) => {
    const { transport } = require("neovim").attach({ socket: target });
    return {
      call: (method, ...params) =>
        new Promise((resolve, reject) => {
          transport.request(method, params, (error, result) => (error ? reject(error) : resolve(result)));
        }),
      notify: (method, ...params) => transport.notify(method, params),
      close: () => transport.close(),
    };
  },
};

async function converse({ call, notify }, module) {
  const get = (sender) => call("get", module, sender);
  const set = (sender, state) => call("set", module, sender, state);
  const setAndGet = (sender, state) => set(sender, state).then(() => get(sender));
  const failure = (answer) => answer.then(() => null, (error) => error);
  // Each length of string that MessagePack has a header for.
  const states = Array.from({ length: 100 }, (_, i) => "X".repeat(5 * i + 1));

  // The properties are evaluated in this order, which is the order of the conversation.
  return {
    ping: (await call("ping"), "answered"),
    stranger: await get("anna@example.com"),
    known: await setAndGet("anna@example.com", "CONFIRMING"),
    nonAscii: await setAndGet("jörg+列表-📮@exämple.org", "ΑΝΑΜΟΝΉ"),
    noSender: await setAndGet(null, "BOUNCED"),
    emptySender: await get(""),
    forgotten: await setAndGet("anna@example.com", "START"),
    unknownMethod: await failure(call("levitate", module)),
    wrongParams: await failure(call("get", module)),
    unknownNotification: (await notify("levitate", module), "sent"),
    notified: (await notify("set", module, "notified@example.com", "BOUNCED"), await get("notified@example.com")),
    refusedNotification: (await notify("set", module), "sent"),
    afterErrors: await get(null),
    pipelinedSets: (await Promise.all(states.map((state, i) => set(`sender-${i}`, state)))).length,
    pipelinedGets: await Promise.all(states.map((_, i) => get(`sender-${i}`))),
  };
}

// A numbered write, and the same again on another connection, as if its answer had not come.
async function repeat(connect, module) {
  const attempt = async (session) => {
    const client = await connect();
    const welcome = await client.call("hello", { session });
    const options = { seq: 1, oldest: 1, not_after: Math.ceil(welcome.time) + 60 };
    const answer = await client.call("compare_and_set", module, "repeated", "START", "CONFIRMING", options);
    await client.close();
    return { session: welcome.session, answer };
  };
  const first = await attempt(0);
  const second = await attempt(first.session);
  return { answers: [first.answer, second.answer], isOneSession: first.session === second.session };
}

async function main([name, address, module]) {
  const [, path, host, port] = /^(?:unix:(.+)|(.+):(\d+))$/.exec(address);
  const connect = () => packages[name](path ? { path } : { host, port: Number(port) });
  const client = await connect();
  const answers = await converse(
    { call: client.call.bind(client), notify: client.notify.bind(client) },
    module,
  );
  await client.close();
  if (name !== "neovim") answers.repeated = await repeat(connect, module); // its `hello` would not be the first
  process.stdout.write(`${JSON.stringify(answers)}\n`); // console.log is muted by `neovim`
}

main(process.argv.slice(2));
