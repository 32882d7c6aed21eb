"""The tasks of the queue "payments": what you replace by your own.

A task is a row of saga.claim_tasks() as a dictionary, and runs in a thread of its own while no
transaction is open: call whom you like, and pass on task["idempotency_key"].  It returns its
result, and statements with their arguments that are committed together with the answer: short ones,
for all tasks share a connection.
"""


class Refused(Exception):
    """Nothing was done, and another attempt would be refused as well."""


def charge_card(task):
    order = task["payload"]["input"]
    if order["amount"] > 1000:
        raise Refused("card declined")
    # In place of real work, which ends early when nobody needs it any more.
    if task["cancelled"].wait(order.get("seconds", 0)):
        raise Refused("no longer wanted")
    return {"paid": order["amount"]}, (
        "INSERT INTO payment (idempotency_key, order_id, amount) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (task["idempotency_key"], order["order_id"], order["amount"]))


def refund(task):
    # What was charged; where task["payload"] has "outcome_unknown" that may be nothing.
    return {}, (
        "INSERT INTO payment (idempotency_key, order_id, amount)"
        " SELECT %s, order_id, -amount FROM payment WHERE order_id = %s AND amount > 0"
        " ON CONFLICT DO NOTHING",
        (task["idempotency_key"], task["payload"]["input"]["order_id"]))


TASKS = {"charge_card": charge_card, "refund": refund}
