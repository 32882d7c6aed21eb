\set ON_ERROR_STOP on
SELECT saga.define('order',
    saga.step('reserve', 'reserve', compensation => 'unreserve'),
    saga.step('pay', 'pay', compensation => 'refund'),
    saga.step('confirm', 'confirm')) \g /dev/null
