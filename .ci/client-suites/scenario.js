// What the npm package etcd3 offers, used once each; prints what came of it, without ids and revisions. The lines must be the same
// for etcd and for Hadron.
const { Etcd3 } = require('etcd3');

const say = (what, value) => console.log(what, JSON.stringify(value));
const failure = async (promise) => {
  try {
    await promise;
    return 'no error';
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
};

async function keys(client) {
  say('missing', await client.get('missing').string());
  await client.put('a').value('1');
  await client.put('a/b').value('2');
  await client.put('a/c').value(Buffer.from([0, 255]));
  say('get', await client.get('a').string());
  say('number', await client.get('a').number());
  say('buffer', (await client.get('a/c').buffer()).toString('hex'));
  say('prefix', await client.getAll().prefix('a/').keys());
  say('range', await client.getAll().inRange({ start: 'a', end: 'a/c' }).strings());
  say('sorted', await client.getAll().prefix('a').sort('Key', 'Descend').limit(2).keys());
  say('count', await client.getAll().prefix('a').count());
  say('exists', await client.get('a').exists());
  const previous = await client.put('a').value('3').getPrevious();
  say('previous', previous.value.toString());
  say('touch', await failure(client.put('untouched').touch()));
  const namespace = client.namespace('space/');
  await namespace.put('x').value('in it');
  say('namespace', [await namespace.get('x').string(), await client.get('space/x').string()]);
  say('deleted', (await client.delete().prefix('space/')).deleted);
}

async function transactions(client) {
  const branch = await client
    .if('a', 'Value', '==', '3')
    .and('a', 'Version', '==', 2)
    .then(client.put('a').value('4'), client.get('a'))
    .else(client.get('a'))
    .commit();
  say('then', [branch.succeeded, branch.responses.length]);
  const other = await client.if('a', 'Create', '==', 0).then(client.put('a').value('no')).else(client.get('a')).commit();
  say('else', [other.succeeded, other.responses[0].response_range.kvs[0].value.toString()]);
  const sum = await client.stm().transact(async (transaction) => {
    const next = (await transaction.get('counter').number() || 0) + 1;
    await transaction.put('counter').value(next);
    return next;
  });
  say('stm', sum);
  const many = Array.from({ length: 5 }, () =>
    client.stm({ retries: 100 }).transact(async (transaction) => {
      await transaction.put('counter').value((await transaction.get('counter').number()) + 1);
    }),
  );
  await Promise.all(many);
  say('stm at once', await client.get('counter').number());
}

async function leases(client) {
  const lease = client.lease(30);
  await lease.put('leased').value('x');
  await lease.keepaliveOnce();
  say('leased', await client.get('leased').string());
  await lease.revoke();
  say('revoked', await client.get('leased').string());
  const short = client.lease(1, { autoKeepAlive: false });
  await short.put('short').value('x');
  const watcher = await client.watch().key('short').create();
  await new Promise((resolve) => watcher.on('delete', resolve));
  say('expired', await client.get('short').string());
  await watcher.cancel();
}

async function locks(client) {
  const first = client.lock('lock');
  await first.acquire();
  const second = client.lock('lock');
  say('taken', await failure(second.acquire()));
  await first.release();
  await second.acquire();
  await second.release();
  say('do', await client.lock('lock').do(async () => 'done'));
}

async function watches(client) {
  const revision = (await client.put('w/1').value('one')).header.revision;
  const seen = [];
  const watcher = await client.watch().prefix('w/').startRevision(revision).withPreviousKV().create();
  const ended = new Promise((resolve) => {
    watcher.on('put', (kv, previous) => {
      seen.push(['put', kv.key.toString(), kv.value.toString(), previous ? previous.value.toString() : null]);
    });
    watcher.on('delete', (kv, previous) => {
      seen.push(['delete', kv.key.toString(), previous ? previous.value.toString() : null]);
      resolve();
    });
  });
  await client.put('w/2').value('two');
  await client.put('w/1').value('three');
  await client.delete().key('w/1');
  await ended;
  await watcher.cancel();
  say('watched', seen);
}

async function elections(client) {
  const election = client.election('election', 10);
  const campaign = election.campaign('first');
  await new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
  say('leader', await election.leader());
  await campaign.proclaim('second');
  say('proclaimed', await election.leader());
  const observer = await election.observe();
  const changed = new Promise((resolve) => observer.on('change', (value) => value === undefined && resolve()));
  await campaign.resign();
  await changed;
  await observer.cancel();
  say('resigned', (await election.leader()) === undefined);
}

async function users(client, host) {
  await client.user('root').create('secret');
  const role = await client.role('reader').create();
  await role.grant({ permission: 'Read', range: client.range ? client.range({ prefix: 'a' }) : { start: 'a', end: 'b' } });
  const permissions = await role.permissions();
  say('permissions', permissions.map((one) => [one.permission, one.range.start.toString(), one.range.end.toString()]));
  const alice = await client.user('alice').create('pw');
  await alice.addRole('reader');
  say('roles of alice', (await alice.roles()).map((one) => one.name));
  say('same user again', await failure(client.user('alice').create('pw')));
  await client.role('root').create();
  await client.user('root').addRole('root');
  await client.auth.authEnable();
  const as = (username, password) => new Etcd3({ hosts: host, auth: { username, password } });
  say('nobody', await failure(client.get('a').string()));
  const wrong = as('alice', 'no');
  say('wrong password', await failure(wrong.get('a').string()));
  const reader = as('alice', 'pw');
  say('alice reads', await reader.get('a').string());
  say('alice writes', await failure(reader.put('a').value('x')));
  const root = as('root', 'secret');
  await root.auth.authDisable();
  say('off again', await client.get('a').string());
  [wrong, reader, root].forEach((one) => one.close());
}

async function main() {
  const host = process.argv[2];
  const client = new Etcd3({ hosts: host });
  await client.delete().all();
  for (const part of [keys, transactions, leases, locks, watches, elections]) {
    await part(client);
  }
  await users(client, host);
  const status = await client.maintenance.status();
  say('leads', status.leader === status.header.member_id);
  client.close();
}

main().then(() => process.exit(0), (error) => {
  console.log('FAILED', error);
  process.exit(1);
});
